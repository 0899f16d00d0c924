"""Where computations run and at what precision, with and without an accelerator."""

import jax
import pytest

from upslope.learning.devices import computing


def settings() -> tuple[object, str | None]:
    return jax.config.jax_default_device, jax.config.jax_default_matmul_precision


@pytest.mark.parametrize("on_host", [True, False])
def test_beside_an_accelerator_a_host_learns_on_the_cpu_and_products_are_full(
    on_host: bool, monkeypatch: pytest.MonkeyPatch
):
    before = settings()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    with computing(on_host=on_host):
        assert settings() == (jax.local_devices(backend="cpu")[0] if on_host else before[0], "float32")
    assert settings() == before


def test_beside_an_accelerator_alone_a_host_learns_on_it(monkeypatch: pytest.MonkeyPatch):
    def unknown(backend: str):
        raise RuntimeError(f"Unknown backend {backend}")

    before = settings()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "local_devices", unknown)
    with computing(on_host=True):
        assert settings() == (before[0], "float32")


def test_on_a_cpu_the_users_own_settings_stay(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    with jax.default_matmul_precision("bfloat16"), computing(on_host=True):
        assert settings()[1] == "bfloat16"
