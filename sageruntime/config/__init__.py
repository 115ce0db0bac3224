"""Configuration: job files and settings, as YAML and from the environment.

A value is taken from the first of these that has it: the command line, the environment, the file,
the default.
"""

from sageruntime.config.job import JobConfig, ResultConfig, StageConfig
from sageruntime.config.job_yaml import JobLoader
from sageruntime.config.loading import load_job, load_settings
from sageruntime.config.settings import Settings

__all__ = [
    "JobConfig",
    "JobLoader",
    "ResultConfig",
    "Settings",
    "StageConfig",
    "load_job",
    "load_settings",
]
