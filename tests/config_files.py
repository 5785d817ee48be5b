"""Config files of the three families, in words of our own: what their published values are, as Python that assigns
them."""

ORIGIN = """
from easydict import EasyDict as edict

config = edict()
config.dataset = "emoreIresNet"
config.network = "mobilefacenet"
config.teacher = "cvlface_ir50"
config.teacher_repo_id = "minchul/cvlface_adaface_ir50_webface4m"
config.teacher_cache = "~/.cvlface_cache/minchul/cvlface_adaface_ir50_webface4m"
config.SE = False
config.embedding_size = 512
config.batch_size = 384  # a GPU
config.lr = 0.1
config.momentum = 0.9
config.weight_decay = 5e-4
config.loss = "AdaFace"
config.s = 64.0
config.m = 0.4
config.h = 0.333
config.t_alpha = 0.01
config.adaptive_alpha = True
config.use_geom_margin = True
config.geom_margin_w = 1.0
config.geom_margin_k = 3.0
config.geom_margin_warmup_epoch = 1
config.val_eval_every_n_epoch = 1
config.eval_every_n_epoch = 4
config.eval_ijb = True
config.ijb_root = "./dataset/facerec_val"
config.ijb_targets = ["IJBB_gt_aligned", "IJBC_gt_aligned"]
config.ijb_flip = True
config.ijb_batch_size = 384
config.eval_tinyface = True
config.tinyface_root = "./dataset/facerec_val"
config.tinyface_targets = ["tinyface_aligned_pad_0.1"]
config.output = "output/run"
config.global_step = 15163

if config.dataset == "emoreIresNet":
    config.rec = "./data/ms1mv2"
    config.val_rec = "./data/ms1mv2"
    config.db_file_format = "rec"
    config.num_classes = 85742
    config.num_image = 5822653
    config.num_epoch = 26
    config.warmup_epoch = 1
    config.val_targets = ["lfw", "cfp_fp", "agedb_30", "calfw", "cplfw", "vgg2_fp"]
    config.eval_step = 5686
    def lr_step_func(epoch):
        return ((epoch + 1) / (4 + 1)) ** 2 if epoch < -1 else 0.1 ** len(
            [m for m in [8, 14, 20, 25] if m - 1 <= epoch])
    config.lr_func = lr_step_func

if config.dataset == "CASIA_WebFace":
    config.rec = "./elsewhere"
    config.num_epoch = 60
    def lr_step_func(epoch):
        return 0.1 ** len([m for m in [40, 48, 52] if m - 1 <= epoch])
    config.lr_func = lr_step_func
"""

ADADISTILL = """
from easydict import EasyDict as edict
config = edict()
config.dataset = "CASIA_WebFace"
config.dataset = "emoreIresNet"
config.embedding_size = 512
config.momentum = 0.9
config.weight_decay = 5e-4
config.batch_size = 128
config.lr = 0.1
config.pretrained_teacher_path = "output/teacher/295672backbone.pth"
config.pretrained_teacher_header_path = "output/teacher/295672header.pth"
config.s = 64.0
config.m = 0.45
config.adaptive_alpha = True
config.loss = "ArcFace"
config.network = "mobilefacenet"
config.teacher = "iresnet50"
config.SE = False
if config.dataset == "emoreIresNet":
    config.rec = "./data/faces_emore"
    config.num_classes = 85742
    config.num_epoch = 26
    config.warmup_epoch = -1
    config.val_targets = ["lfw", "cfp_fp", "cfp_ff", "agedb_30", "calfw", "cplfw"]
    config.eval_step = 5686
    def lr_step_func(epoch):
        return ((epoch + 1) / (4 + 1)) ** 2 if epoch < config.warmup_epoch else 0.1 ** len(
            [m for m in [8, 14, 20, 25] if m - 1 <= epoch])
    config.lr_func = lr_step_func
"""

INSIGHTFACE_MS1MV2_R50 = """
from easydict import EasyDict as edict
config = edict()
config.margin_list = (1.0, 0.5, 0.0)
config.network = "r50"
config.resume = False
config.output = None
config.embedding_size = 512
config.sample_rate = 1.0
config.fp16 = True
config.momentum = 0.9
config.weight_decay = 1e-4
config.batch_size = 128
config.lr = 0.1
config.verbose = 2000
config.dali = False
config.rec = "/train_tmp/faces_emore"
config.num_classes = 85742
config.num_image = 5822653
config.num_epoch = 20
config.warmup_epoch = 0
config.val_targets = ['lfw', 'cfp_fp', "agedb_30"]
"""

INSIGHTFACE_WF12M_R50 = """
from easydict import EasyDict as edict
config = edict()
config.margin_list = (1.0, 0.0, 0.4)
config.network = "r50"
config.resume = False
config.output = None
config.embedding_size = 512
config.sample_rate = 1.0
config.interclass_filtering_threshold = 0
config.fp16 = True
config.weight_decay = 5e-4
config.batch_size = 128
config.optimizer = "sgd"
config.lr = 0.1
config.verbose = 2000
config.dali = True
config.rec = "/train_tmp/WebFace12M"
config.num_classes = 617970
config.num_image = 12720066
config.num_epoch = 20
config.warmup_epoch = config.num_epoch // 10
config.val_targets = []
"""

INSIGHTFACE_2021 = """
from easydict import EasyDict as edict
config = edict()
config.dataset = "ms1m-retinaface-t1"
config.embedding_size = 512
config.sample_rate = 1
config.fp16 = False
config.momentum = 0.9
config.weight_decay = 5e-4
config.batch_size = 128
config.lr = 0.1  # for 512 images
config.output = "ms1mv3_arcface_r50"
config.network = "r50"
config.loss = 'cosface'
config.resume = False

if config.dataset == "emore":
    config.rec = "/train_tmp/faces_emore"
    config.num_epoch = 16
    config.warmup_epoch = -1
    config.decay_epoch = [8, 14]
elif config.dataset == "ms1m-retinaface-t1":
    config.rec = "/train_tmp/ms1m-retinaface-t1"
    config.num_classes = 93431
    config.num_image = 5179510
    config.num_epoch = 25
    config.warmup_epoch = -1
    config.decay_epoch = [11, 17, 22]
    config.val_targets = ["lfw", "cfp_fp"]
"""
