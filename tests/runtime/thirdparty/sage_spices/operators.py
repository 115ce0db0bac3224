"""An operator with an argument."""

from sageruntime import BaseOperator


class Grind(BaseOperator):
    def __init__(self, fineness=1):
        self.fineness = fineness

    def process(self, packet):
        packet.payload = f"{packet.payload} ground({self.fineness})"
        return packet
