"""A binary gateway process: `python -m gateways.binary --config FILE --data DIR --index N`."""
from gateways import gateway_process
from gateways.gateway_process import Kind
from shm.configuration import BINARY_GATEWAY
from shm.process import instance_of


def fronts(bridge, answers, catalog, settings, data):
    from gateways.binary_front import BinaryFront  # late: the cache of its kernels is chosen by now

    return (BinaryFront(bridge, answers, catalog, settings, instance_of(data).bytes),)


if __name__ == "__main__":
    gateway_process.main(Kind("gateways.binary", BINARY_GATEWAY, "binary", "Serves the exchange's binary port.",
                              "[binary] in the configuration", fronts))
