"""tmp"""
from tests.cli.running import *
def test_a(trained_copying): pass
def test_b(trained_language): pass
def test_c(folder):
    print(succeed("fit", *COPYING, *UNTRACKED))
def test_d(folder):
    print(rimlit("fit", *COPYING, "--model.init_args.backbone.init_args.num_activ=3"))
def test_e(copying):
    print(rimlit("test", "--ckpt_path", copying/"checkpoints/best.ckpt", *QUIET))
