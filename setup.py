"""What setup.cfg cannot say: the folder configs/ is installed as the package wsod_jax.configs."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["wsod_jax*"]), "wsod_jax.configs"],
    package_dir={"wsod_jax.configs": "configs"},
)
