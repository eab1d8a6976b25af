"""What pyproject.toml cannot say: configs lie in experiments/, and in the package once it is installed; models too."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["dio_lightning*", "data_modules*"]), "dio_lightning.experiments"],
    package_dir={"dio_lightning.experiments": "experiments"},
    # a folder deep: the configs alone, neither weights nor results
    package_data={
        "dio_lightning.experiments": ["*/*.yaml"],
        "dio_lightning.models": ["*.safetensors"],
        "dio_lightning.reports": ["templates/*", "vendor/*"],
    },
)
