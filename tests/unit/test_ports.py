from tests.ports import free_port


def test_a_port_is_not_given_again_before_its_server_listens() -> None:
    ports = [free_port() for _ in range(400)]
    assert len({*ports}) == len(ports)
    first = free_port(3)
    assert not {first, first + 1, first + 2} & {*ports, free_port()}
