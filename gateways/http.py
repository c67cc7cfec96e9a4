"""An HTTP gateway process: `python -m gateways.http --config FILE --data DIR --index N`."""
from gateways import gateway_process
from gateways.gateway_process import Kind
from shm.configuration import HTTP_GATEWAY


def fronts(bridge, answers, catalog, settings, _data):
    from gateways.http_front import HttpFront  # late: the cache of its kernels is chosen by now
    from gateways.pages import Pages
    from gateways.plain_http import PlainServer

    plain_server = PlainServer(answers, settings.body_bytes_max, Pages(bridge))
    return HttpFront(bridge, answers, plain_server, catalog, settings), plain_server


if __name__ == "__main__":
    gateway_process.main(Kind("gateways.http", HTTP_GATEWAY, "http", "Serves the exchange's HTTP interface.",
                              "--http HOST:PORT", fronts))
