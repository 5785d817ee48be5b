"""Record files as folders of images, and back: the bytes of every image, its labels, the order and the identities.

`records_to_folder` writes `FOLDER/<identity>/<key>.jpg` and beside them an im2rec list, `.records.lst`, of what images
alone do not tell. `folder_to_records` makes records of such a folder, of any folder of identities, or by any such list.
"""
