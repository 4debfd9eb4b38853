"""Makes the pictures in tests/fixtures/pictures and the goldens in tests/golden that tests/preprocess compares with.

    python3 tests/preprocess/make_goldens.py        (pillow 12.3, numpy, torch 2)

Resizing: the pictures are computed from a formula, here and in the test, so only Pillow's answer is stored.
Decoding: upright RGB as Pillow gives it, `ImageOps.exif_transpose` and `convert("RGB")`; 16-bit by the high byte.
"""

import base64, hashlib, io, json, os, struct, zlib
import numpy as np
import torch
from PIL import Image, ImageOps

HERE = os.path.dirname(os.path.abspath(__file__))
GOLDEN = os.path.join(HERE, "..", "golden")
PICTURES = os.path.join(HERE, "..", "fixtures", "pictures")


def synthetic(kind, width, height):
    """noise: a hash of the sample's index; edges: black and white blocks; slopes: ramps with jumps."""
    i = np.arange(width * height * 3, dtype=np.uint32)
    x, y, c = i // 3 % width, i // 3 // width, i % 3
    if kind == "noise":
        v = i * np.uint32(2654435761)
        v ^= v >> np.uint32(15)
        v *= np.uint32(2246822519)
        v >>= np.uint32(24)
    elif kind == "edges":
        v = ((x >> 2) + (y >> 1) + c) % 2 * 255
    else:
        v = (x * 7 + y * 13 + c * 85) & 255
    return v.astype(np.uint8).reshape(height, width, 3)


SIZES = [(1, 1, 1), (1, 1, 8), (1, 1, 224), (1, 50, 16), (50, 1, 16), (2, 3, 7), (5, 5, 1), (1000, 1, 3), (64, 64, 64),
         (64, 40, 64), (40, 64, 64), (65, 63, 64), (3000, 20, 64), (20, 3000, 64), (30, 3000, 64), (1, 120, 120), (1, 120, 140), (13, 17, 896), (223, 225, 224),
         (300, 200, 448), (448, 447, 224), (1023, 767, 224), (1600, 1200, 448)]


def resize_goldens():
    cases = []
    for width, height, size in SIZES:
        for kind in ["noise", "edges", "slopes"]:
            a = synthetic(kind, width, height)
            bicubic = np.asarray(Image.fromarray(a).resize((size, size), Image.BICUBIC))
            t = torch.from_numpy(a.copy()).permute(2, 0, 1)[None].double()
            bilinear = torch.nn.functional.interpolate(t, (size, size), mode="bilinear", antialias=True)[0].permute(1, 2, 0).numpy()
            at = sorted({(0, 0), (size - 1, size - 1), (size // 3, size * 2 // 3), (size // 2, 0)})
            cases.append({
                "kind": kind, "width": width, "height": height, "size": size,
                "bicubicSha256": hashlib.sha256(bicubic.tobytes()).hexdigest(),
                "bicubic": {f"{y},{x}": bicubic[y, x].tolist() for y, x in at},
                "bilinear": {f"{y},{x}": [round(float(v), 4) for v in bilinear[y, x]] for y, x in at},
            })
    note = ("Made by tests/preprocess/make_goldens.py: bicubic by Pillow %s, bilinear by torch %s in f64 "
            "(antialias=True). Pixels by row,column." % (Image.__version__, torch.__version__.split("+")[0]))
    write_json("resize_synthetic.json", {"note": note, "cases": cases})


def scene(width=20, height=12):
    """Smooth enough for JPEG, different in every corner."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x * 255 // (width - 1), y * 255 // (height - 1), np.where((x < 8) & (y < 4), 230, 40)], -1).astype(np.uint8)


def chunk(name, body):
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(width, height, depth, colour, raw, interlace=0, before=b"", after=b""):
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + before + chunk(b"IDAT", zlib.compress(raw, 9)) + after + chunk(b"IEND", b""))


def rows(a):
    """Filter type 0 in front of every row."""
    return b"".join(b"\0" + row.tobytes() for row in a)


def adam7(a):
    passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    parts = [a[y0::dy, x0::dx] for x0, y0, dx, dy in passes]
    return b"".join(rows(part) for part in parts if part.size)


golden = {}


def rgb(image):
    return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


def on_white(image):
    image = image.convert("RGBA")
    out = Image.new("RGB", image.size, "white")
    out.paste(image, mask=image.getchannel("A"))
    return np.asarray(out)


def add(name, data, expected=None, white=None, tolerance=0):
    assert len(data) < 10_000, (name, len(data))
    with open(os.path.join(PICTURES, name), "wb") as f:
        f.write(data)
    if expected is None:
        expected = rgb(Image.open(io.BytesIO(data)))
    entry = {"width": expected.shape[1], "height": expected.shape[0], "tolerance": tolerance,
             "rgb": base64.b64encode(expected.tobytes()).decode()}
    if white is not None:
        entry["white"] = base64.b64encode(white.tobytes()).decode()
    golden[name] = entry


def saved(image, format, **options):
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def refused(name, data):
    assert len(data) < 10_000, (name, len(data))
    with open(os.path.join(PICTURES, name), "wb") as f:
        f.write(data)


def picture_goldens():
    a = scene()
    h, w = a.shape[:2]
    im = Image.fromarray(a)
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        exif[0x010F] = "a maker's name that takes more than four bytes"
        add(f"orientation{orientation}.jpg", saved(im, "JPEG", quality=95, exif=exif, subsampling=orientation % 3), tolerance=2)
        add(f"orientation{orientation}.png", saved(im, "PNG", exif=exif))
        add(f"orientation{orientation}.webp", saved(im, "WEBP", lossless=orientation % 2 == 0, quality=90, exif=exif), tolerance=2)

    add("baseline.jpg", saved(im, "JPEG", quality=90, restart_marker_blocks=1), tolerance=2)
    add("progressive.jpg", saved(im, "JPEG", quality=90, progressive=True), tolerance=2)
    add("grey.jpg", saved(im.convert("L"), "JPEG", quality=90), tolerance=2)
    add("rgb.jpg", saved(im, "JPEG", quality=95, keep_rgb=True), tolerance=2)
    refused("cmyk.jpg", saved(im.convert("CMYK"), "JPEG", quality=90))

    palette = im.quantize(16)
    add("palette.png", saved(palette, "PNG"))
    add("palette_transparent.png", saved(palette, "PNG", transparency=bytes(range(0, 256, 16))),
        rgb(palette), on_white(Image.open(io.BytesIO(saved(palette, "PNG", transparency=bytes(range(0, 256, 16)))))))
    add("grey.png", saved(im.convert("L"), "PNG"))
    add("bilevel.png", saved(im.convert("1"), "PNG"))
    grey2 = (a[..., 0] >> 6)
    packed = np.stack([grey2[:, i::4] for i in range(4)]).transpose(1, 2, 0).astype(np.uint8)
    packed = packed[..., 0] << 6 | packed[..., 1] << 4 | packed[..., 2] << 2 | packed[..., 3]
    add("grey2.png", png(w, h, 2, 0, rows(packed)), np.repeat((grey2 * 85).astype(np.uint8)[..., None], 3, -1))
    deep = (np.arange(h * w * 3).reshape(h, w, 3) * 91 % 65536).astype(">u2")
    add("rgb16.png", png(w, h, 16, 2, rows(deep)), (deep >> 8).astype(np.uint8))
    add("grey16.png", png(w, h, 16, 0, rows(deep[..., 0])), np.repeat((deep[..., :1] >> 8).astype(np.uint8), 3, -1))
    add("interlaced.png", png(w, h, 8, 2, adam7(a), interlace=1), a)

    alpha = (np.arange(h * w).reshape(h, w) * 37 % 256).astype(np.uint8)
    alpha[0, :3] = [0, 255, 128]
    rgba = np.dstack([a, alpha])
    image = Image.fromarray(rgba)
    add("rgba.png", saved(image, "PNG"), a, on_white(image))
    la = Image.fromarray(rgba).convert("LA")
    add("grey_alpha.png", saved(la, "PNG"), np.asarray(la.convert("RGB")), on_white(la))
    add("rgba.webp", saved(image, "WEBP", lossless=True, exact=True), a, on_white(image))
    lossy = saved(image, "WEBP", quality=80, exact=True)
    add("rgba_lossy.webp", lossy, white=on_white(Image.open(io.BytesIO(lossy))), tolerance=2)

    # A picture drawn over a part of the canvas, twice.
    other = Image.fromarray(255 - a)
    frames = saved(im, "WEBP", save_all=True, append_images=[other], duration=100, lossless=True)
    add("animated.webp", frames, a)
    patch = Image.new("RGBA", (w, h))
    patch.paste(Image.fromarray(rgba[:6, :10]), (4, 2))
    data = saved(patch, "WEBP", save_all=True, append_images=[image], duration=100, lossless=True, exact=True, minimize_size=True)
    add("animated_offset.webp", data, white=on_white(Image.open(io.BytesIO(data))))
    add("animated.png", saved(im, "PNG", save_all=True, append_images=[other], duration=100), a)

    refused("unsupported.gif", saved(im, "GIF"))
    refused("unsupported.bmp", saved(im, "BMP"))
    refused("unsupported.tiff", saved(im, "TIFF"))
    refused("unsupported.avif", saved(im, "AVIF"))
    note = "Made by tests/preprocess/make_goldens.py with Pillow %s: upright RGB bytes in base64." % Image.__version__
    write_json("pictures.json", {"note": note, "pictures": golden})


def write_json(name, value):
    with open(os.path.join(GOLDEN, name), "w") as f:
        head, key = {k: v for k, v in value.items() if k == "note"}, next(k for k in value if k != "note")
        items = value[key]
        lines = [json.dumps(it) for it in items] if isinstance(items, list) else [f"{json.dumps(k)}: {json.dumps(v)}" for k, v in items.items()]
        left, right = "[]" if isinstance(items, list) else "{}"
        f.write(f'{{"note": {json.dumps(head["note"])},\n"{key}": {left}\n' + ",\n".join(lines) + f"\n{right}}}\n")


if __name__ == "__main__":
    os.makedirs(PICTURES, exist_ok=True)
    resize_goldens()
    picture_goldens()
