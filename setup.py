from setuptools import setup

setup()  # the settings are in pyproject.toml
