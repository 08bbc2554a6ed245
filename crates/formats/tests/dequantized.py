"""Dequantize every integer module of the fixtures in plain Python and write what tests/fixtures.rs compares against.

usage: dequantized.py FIXTURES > dequantized.json        (needs nothing but Python)

For each folder and module: [K, N, crc32, "sum", eight "samples"], floats as text that reads back exactly. The crc32 is over all K*N values, row-major [K, N], as
little-endian 64-bit floats; every value is an integer times a float of at most 32 bits and therefore exact. Sample i is the value
at flat index (i * 2654435761 + 12345) mod K*N. The reader below shares nothing with Billfish: it was written from a
description of the format, for the dialects that the fixtures speak, and agrees with their writer's own dequantization.
"""
import json, math, os, re, struct, sys, zlib

PLANES = {2: (2,), 3: (2, 1), 4: (4,), 5: (4, 1), 6: (4, 2), 7: (4, 2, 1), 8: (8,)}
ONES = {2: 0x55555555, 4: 0x11111111, 8: 0x01010101}


def tensors(folder):
    out = {}
    for name in sorted(os.listdir(folder)):
        if name.endswith(".safetensors"):
            data = open(os.path.join(folder, name), "rb").read()
            size = int.from_bytes(data[:8], "little")
            header = json.loads(data[8:8 + size])
            header.pop("__metadata__", None)
            for key, t in header.items():
                a, b = t["data_offsets"]
                out[key] = (t["dtype"], t["shape"], data[8 + size + a:8 + size + b])
    return out


def numbers(t):
    dtype, _, data = t
    if dtype == "BF16":
        return [struct.unpack("<f", b"\0\0" + data[i:i + 2])[0] for i in range(0, len(data), 2)]
    code = {"I8": "b", "I32": "i", "I64": "q", "F16": "e", "F32": "f"}[dtype]
    return list(struct.unpack(f"<{len(data) // struct.calcsize(code)}{code}", data))


def stream(words, bits, count):
    """One long integer, least significant word first, cut into `bits` wide pieces."""
    big = int.from_bytes(struct.pack(f"<{len(words)}I", *words), "little")
    return [big >> (i * bits) & ((1 << bits) - 1) for i in range(count)]


def planar(words, bits, count):
    out = []
    for at in range(0, len(words), bits):
        run, low, word = [0] * 32, 0, at
        for width in PLANES[bits]:
            for i, field in enumerate(stream(words[word:word + width], width, 32)):
                run[i] |= field << low
            low, word = low + width, word + width
        out += run
    return out[:count]


def scheme(cfg, module):
    rules = sorted((cfg.get("dynamic") or {}).items(), key=lambda kv: not kv[0].startswith("-:"))
    for pattern, over in rules:
        if re.match(re.sub(r"^[+-]:", "", pattern), module):
            return {**cfg, **over}
    return cfg


def dequantize(t, module, cfg):
    s = scheme(cfg, module)
    bits, fmt = s["bits"], cfg.get("checkpoint_format", "gptq")
    unpack = planar if fmt == "gptq_p" else stream
    qweight, qzeros, scales = (t[f"{module}.{x}"] for x in ("qweight", "qzeros", "scales"))
    rows, n = qweight[1]
    k, groups = rows * 32 // bits, scales[1][0]
    words = [w & 0xffffffff for w in numbers(qweight)]
    columns = [unpack(words[c::n], bits, k) for c in range(n)]
    words = [w & 0xffffffff for w in numbers(qzeros)]
    if fmt == "gptq" and bits in ONES:
        words = [(w + ONES[bits]) & 0xffffffff for w in words]
    per = qzeros[1][1]
    zeros = [unpack(words[g * per:(g + 1) * per], bits, n) for g in range(groups)]
    if fmt == "gptq" and bits == 3:
        zeros = [[(z + 1) & 7 for z in row] for row in zeros]
    scale = numbers(scales)
    size = s["group_size"] if s["group_size"] > 0 else k
    index = numbers(t[f"{module}.g_idx"]) if f"{module}.g_idx" in t else [i // size for i in range(k)]
    out = []
    for row in range(k):
        g = index[row]
        out += [(columns[c][row] - zeros[g][c]) * scale[g * n + c] for c in range(n)]
    return k, n, out


AWQ_COLUMN = (0, 2, 4, 6, 1, 3, 5, 7)  # of each nibble, low to high


def awq_row(words):
    out = []
    for word in words:
        block = [0] * 8
        for nibble, column in enumerate(AWQ_COLUMN):
            block[column] = word >> (4 * nibble) & 15
        out += block
    return out


def dequantize_awq(t, module, cfg):
    qweight, qzeros, scales = (t[f"{module}.{x}"] for x in ("qweight", "qzeros", "scales"))
    k, per = qweight[1]
    n, size = 8 * per, cfg["group_size"] if cfg["group_size"] > 0 else k
    codes, zeros, scale = [w & 0xffffffff for w in numbers(qweight)], [w & 0xffffffff for w in numbers(qzeros)], numbers(scales)
    out = []
    for row in range(k):
        g = row // size
        pairs = zip(awq_row(codes[row * per:][:per]), awq_row(zeros[g * per:][:per]))
        out += [(q - z) * scale[g * n + c] for c, (q, z) in enumerate(pairs)]
    return k, n, out


def dequantize_ct(t, module, cfg):
    """compressed-tensors with one group of modules, symmetric, rows of every tensor are outputs."""
    (group,) = cfg["config_groups"].values()
    bits, scales = group["weights"]["num_bits"], t[f"{module}.weight_scale"]
    if f"{module}.weight_packed" in t:
        n, k = numbers(t[f"{module}.weight_shape"])
        words, per = [w & 0xffffffff for w in numbers(t[f"{module}.weight_packed"])], t[f"{module}.weight_packed"][1][1]
        rows = [[q - (1 << bits - 1) for q in stream(words[r * per:][:per], bits, k)] for r in range(n)]
    else:
        n, k = t[f"{module}.weight"][1]
        values = numbers(t[f"{module}.weight"])
        rows = [values[r * k:][:k] for r in range(n)]
    scale, groups = numbers(scales), scales[1][1]
    size = group["weights"]["group_size"] or k
    return k, n, [rows[c][row] * scale[c * groups + row // size] for row in range(k) for c in range(n)]


READERS = {  # method: the tensor that a module is known by, its reader
    "gptq": ((".qweight",), dequantize),
    "awq": ((".qweight",), dequantize_awq),
    "compressed-tensors": ((".weight_packed", ".weight"), dequantize_ct),
}
INTEGERS = ("gptq", "gptq_v2", "gptq_p", "gemm", "pack-quantized", "int-quantized")


def main(root):
    result = {}
    for folder in sorted(os.listdir(root)):
        path = os.path.join(root, folder)
        if not os.path.exists(os.path.join(path, "config.json")):
            continue
        cfg = json.load(open(os.path.join(path, "config.json"))).get("quantization_config") or {}
        t = tensors(path)
        if cfg.get("quant_method") not in READERS or cfg.get("format", "gptq") not in INTEGERS:
            continue
        parts, read = READERS[cfg["quant_method"]]
        modules = sorted(key[:-len(p)] for p in parts for key in t if key.endswith(p) and t[key][0] in ("I32", "I8"))
        result[folder] = {}
        for module in modules:
            k, n, w = read(t, module, cfg)
            crc = zlib.crc32(struct.pack(f"<{len(w)}d", *w))
            samples = [w[(i * 2654435761 + 12345) % len(w)] for i in range(8)]
            result[folder][module] = [k, n, crc, *map(repr, [math.fsum(w), *samples])]
    folders = []
    for folder, modules in result.items():
        rows = ",\n  ".join(f"{json.dumps(m)}: {json.dumps(v)}" for m, v in modules.items())
        folders.append(f"{json.dumps(folder)}: {{\n  {rows}\n}}")
    print("{\n" + ",\n".join(folders) + "\n}")


main(sys.argv[1])
