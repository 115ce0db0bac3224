"""A plugin with hooks before, after and beside the operator."""

import os
import sys

from sageruntime.plugins import hookimpl


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
        # read by the test: where and what; in one write, for several threads do
        sys.stdout.write(f"{os.getpid()} {task.ctx.stage} {task.state.value}\n")
        sys.stdout.flush()
