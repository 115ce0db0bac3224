"""A plugin with hooks before, after and beside the operator."""

import logging
import os

from sageruntime.plugins import hookimpl

logger = logging.getLogger(__name__)


class Pepper:
    @hookimpl
    def before_process(self, ctx, packets):
        for packet in packets:
            packet.payload = f"{packet.payload} pepper({ctx.stage})"

    @hookimpl
    def after_process(self, results):
        results[:] = [result for result in results if "mould" not in result.payload]

    @hookimpl
    def on_state_change(self, task):
        # read by the test: where and what
        print(f"{os.getpid()} {task.ctx.stage} {task.state.value}", flush=True)
