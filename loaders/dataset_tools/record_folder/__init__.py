"""Record files as image folders and back: image bytes untouched, resumable, the input never written to.

`records_to_folder` writes `FOLDER/<identity>/<key>.jpg` and a manifest of what images alone do not tell;
`folder_to_records` makes records of such a folder (the very bytes it came from) or of any folder of identities.
"""
