from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from agents.core.decode import Limits, Refusal, decode, sniff


def _avif(**options: object) -> bytes:
    out = io.BytesIO()
    Image.linear_gradient("L").resize((48, 32)).convert("RGB").save(out, "AVIF", **options)
    return out.getvalue()


@pytest.mark.parametrize("brand", [b"MA1B", b"MA1A", b"miaf", b"mif2", b"pymd", b"abcd", b"mif1"])
def test_an_avif_is_decoded_under_any_major_brand(brand: bytes) -> None:
    """`avif` among the compatible brands is enough, as for libavif."""
    data = _avif()
    renamed = data[:8] + brand + data[12:]
    assert sniff(renamed) == "avif"
    assert decode(renamed, Limits()).image.tobytes() == decode(data, Limits()).image.tobytes()


def test_brands_count_wherever_they_lie_in_a_long_list() -> None:
    """A file may list many other brands first."""
    data = _avif()
    size = int.from_bytes(data[:4], "big")
    longer = b"".join(b"b%03d" % number for number in range(200))
    assert (
        sniff((size + len(longer)).to_bytes(4, "big") + data[4:8] + b"pymd" + data[12:16] + longer + data[16:])
        == "avif"
    )


def test_a_cut_avif_under_an_unusual_brand_is_refused() -> None:
    """The brand changes nothing else."""
    data = _avif()
    with pytest.raises(Refusal):
        decode(data[:8] + b"MA1B" + data[12 : len(data) // 2], Limits())


def test_alpha_of_an_avif_is_kept() -> None:
    """Transparency is decoded with the colours."""
    image = Image.new("RGBA", (16, 16), (200, 100, 50, 255))
    image.paste((10, 20, 30, 0), (0, 0, 8, 16))
    out = io.BytesIO()
    image.save(out, "AVIF", quality=100)
    alpha = np.asarray(decode(out.getvalue(), Limits()).image)[..., 3]
    assert (alpha[:, :7] < 5).all() and (alpha[:, 9:] > 250).all()
