"""The counted memory of docs/families.md."""

from small_models import FAMILIES

from devtools import in_process_host as host
from devtools.family_memory import measured
from devtools.real_sizes import NOT_COUNTED, REAL_SIZES


def test_real_sizes_are_of_the_families_that_are_tested():
    assert REAL_SIZES.keys() | NOT_COUNTED.keys() == FAMILIES.keys()
    for name, size in REAL_SIZES.items():
        assert len(size.latent) == len(FAMILIES[name].latent) and size.latent[0] == FAMILIES[name].latent[0], name


def test_a_step_of_sd15_is_counted_without_memory():
    """The parameters are the published number. Streaming saves what its ring does not hold, by the stream itself."""
    parameters, whole, streamed = measured(FAMILIES["sd15"].supported, REAL_SIZES["sd15"])
    assert parameters == 859_520_964
    step = whole - 2 * parameters
    assert 0.1e9 < step < 0.6e9  # without gradient checkpointing it is 1.3 GB, and twice that in fp32
    streaming = host.pack("dco_core.network.weight_stream")
    assert streaming.AHEAD == 2
    assert whole - streamed > 0.6 * 2 * parameters and streamed > step
