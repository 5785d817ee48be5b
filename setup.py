"""Packaging: the five source folders become one import name, `adadistill.<folder>`."""

from pathlib import Path

from setuptools import find_namespace_packages, setup

FOLDERS = ("core", "kernels", "loaders", "recipes", "bench")
found = find_namespace_packages(include=[p for f in FOLDERS for p in (f, f"{f}.*")])

EXTRAS = {
    "dali13": ["nvidia-dali-cuda130>=2.3"],
    "dali12": ["nvidia-dali-cuda120>=2.3"],
    "onnx": ["onnx", "onnxruntime>=1.20"],
    "onnx-gpu": ["onnx", "onnxruntime-gpu>=1.20"],
    "report": ["matplotlib>=3.7"],
    "arrow": ["pyarrow"],
    "png": ["pillow"],
    "tensorboard": ["tensorboard"],
    "wandb": ["wandb"],
    "vision": ["torchvision"],
    "dev": [
        "pytest>=8",
        "pytest-xdist",
        "hypothesis",
        "ruff",
        "mypy",
        "types-PyYAML",
        "opencv-python-headless",  # the judge of our resampling
        "tensorboard",
        "pillow",
        "triton; sys_platform == 'linux'",  # for its interpreter; CUDA builds of torch bring it
    ],
}

setup(
    name="adadistill",
    version="0.1.0",
    description="Distils small face-recognition networks: adaptive centres, AdaFace margins, geometry-aware margin",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="CC-BY-NC-SA-4.0",
    python_requires=">=3.10",
    packages=[f"adadistill.{p}" for p in found],
    package_dir={"adadistill": "."},
    package_data={
        "adadistill.recipes": ["*.yaml", "variants/*.yaml", "launch/*.sbatch"],
        "adadistill.core.report": ["*.jinja"],
    },
    install_requires=[
        "torch>=2.11",
        "numpy",
        "pyyaml",
        "safetensors",
        "simplejpeg",
        "nvtx",
        "huggingface_hub",
        "scikit-learn",
        "scipy",  # which scikit-learn brings, as it does the next
        "threadpoolctl",
        "jinja2",  # which torch brings
    ],
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["adadistill = adadistill.recipes.cli:main"]},
)
