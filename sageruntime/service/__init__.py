"""Services: a task calls a named service and gets its answer, over the same queues."""

from sageruntime.context import Services
from sageruntime.service.client import ServiceClient, ServiceMethod
from sageruntime.service.service import Service
from sageruntime.service.service_task import ServiceTask

__all__ = ["Service", "ServiceClient", "ServiceMethod", "ServiceTask", "Services"]
