"""Many streaming clients for some minutes, and what must hold after them.

    python load.py http://127.0.0.1:8000 [--clients 200] [--seconds 300] [--pid PID] [--key KEY]

Every stream must end with a finish reason, usage and [DONE]; the only refusal is 429 with Retry-After. Afterwards the gauges are
0 and the totals in /metrics are the sums of what the streams were told. With --pid, resident memory is printed every
ten seconds and must not have grown by more than a tenth between the first and the last quarter.
Blocks of the cache are taken from the system when they are first used, or some before that while nothing runs, so give the
server one that fills early, such as --kv-cache-memory 256MiB.
"""

import argparse
import asyncio
import json
import random
import re
import sys
import time
from urllib.parse import urlsplit

options = argparse.ArgumentParser()
options.add_argument("url")
options.add_argument("--clients", type=int, default=200)
options.add_argument("--seconds", type=float, default=300)
options.add_argument("--pid", type=int)
options.add_argument("--key", default="none")
options.add_argument("--leave", type=float, default=0.0, help="part of the streams that are left in the middle")
ARGS = options.parse_args()
HOST = urlsplit(ARGS.url)
COUNT = {"ended": 0, "refused": 0, "broken": 0, "left": 0, "prompt": 0, "completion": 0}
MEMORY = []


async def http(method, path, body=b""):
    """Sends a request; gives status, headers and the open connection."""
    reader, writer = await asyncio.open_connection(HOST.hostname, HOST.port, limit=1 << 24)
    head = f"{method} {path} HTTP/1.1\r\nHost: {HOST.netloc}\r\nAuthorization: Bearer {ARGS.key}\r\n"
    writer.write(f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body)
    await writer.drain()
    lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    headers = {k.lower(): v.strip() for k, v in (line.split(":", 1) for line in lines[1:] if ":" in line)}
    return int(lines[0].split()[1]), headers, reader, writer


async def metrics():
    _, _, reader, writer = await http("GET", "/metrics")
    text = (await reader.read()).decode()
    writer.close()
    found = re.findall(r"^(billfish_\w+)(?:\{[^}]*\})? ([0-9.e+]+)", text, re.M)
    sums = {}
    for name, value in found:
        sums[name] = sums.get(name, 0) + float(value)
    return sums


async def one(i, until):
    rng = random.Random(i)
    while time.time() < until:
        prompt = " ".join(rng.choice(["king", "wolf", "forest", "golden", "bird"]) for _ in range(rng.randint(1, 40)))
        body = {
            "model": MODEL, "messages": [{"role": "user", "content": prompt}], "max_tokens": rng.randint(1, 64),
            "seed": rng.randint(0, 9), "stream": True, "stream_options": {"include_usage": True},
        }
        try:
            status, headers, reader, writer = await http("POST", "/v1/chat/completions", json.dumps(body).encode())
            if status == 429:
                COUNT["refused" if "retry-after" in headers else "broken"] += 1
                writer.close()
                await asyncio.sleep(1)
                continue
            leave = rng.random() < ARGS.leave
            done, finish, usage = False, None, None
            while line := await reader.readline():
                # chunk sizes of the transfer stand between the lines of events
                if line.startswith(b"data: [DONE]"):
                    done = True
                elif line.startswith(b"data: "):
                    event = json.loads(line[6:])
                    finish = next((c["finish_reason"] for c in event.get("choices", []) if c["finish_reason"]), finish)
                    usage = event.get("usage") or usage
                    if leave:
                        break
            writer.close()
            if leave:
                COUNT["left"] += 1
            elif done and finish and usage and status == 200:
                COUNT["ended"] += 1
                COUNT["prompt"] += usage["prompt_tokens"]
                COUNT["completion"] += usage["completion_tokens"]
            else:
                COUNT["broken"] += 1
        except (OSError, asyncio.IncompleteReadError, ValueError) as e:
            COUNT["broken"] += 1
            print(f"client {i}: {type(e).__name__}: {e}")


async def watch(until):
    while time.time() < until:
        if ARGS.pid:
            status = open(f"/proc/{ARGS.pid}/status").read()
            MEMORY.append(int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024)
            print(f"{until - time.time():5.0f} s left, {MEMORY[-1]:.0f} MB resident, {COUNT}")
        await asyncio.sleep(10)


async def main():
    global MODEL
    _, _, reader, writer = await http("GET", "/v1/models")
    MODEL = json.loads(re.sub(r"^[0-9a-f]+\r?\n", "", (await reader.read()).decode()).split("\r\n0\r\n")[0])["data"][0]["id"]
    writer.close()
    before = await metrics()
    until = time.time() + ARGS.seconds
    await asyncio.gather(watch(until), *[one(i, until) for i in range(ARGS.clients)])
    await asyncio.sleep(2)
    after = await metrics()
    print(COUNT)
    wrong = []
    if COUNT["broken"]:
        wrong.append(f"{COUNT['broken']} streams did not end as they should")
    for gauge in ["billfish_num_requests_running", "billfish_num_requests_waiting"]:
        if after.get(gauge) != 0:
            wrong.append(f"{gauge} is {after.get(gauge)} afterwards")
    for name, told in [("billfish_prompt_tokens_total", "prompt"), ("billfish_generation_tokens_total", "completion")]:
        counted = after[name] - before[name]
        # those who left were not told, and what was made for them is counted
        if counted < COUNT[told] or (COUNT["left"] == 0 and counted != COUNT[told]):
            wrong.append(f"{name} grew by {counted}, the streams were told {COUNT[told]}")
        print(f"{name}: {counted:.0f} counted, {COUNT[told]} told to streams that ended")
    if len(MEMORY) >= 8:
        quarter = len(MEMORY) // 4
        first, last = max(MEMORY[quarter : 2 * quarter]), max(MEMORY[-quarter:])
        print(f"resident memory: {first:.0f} MB in the second quarter, {last:.0f} MB in the last")
        if last > 1.1 * first:
            wrong.append("memory grows")
    print("\n".join(wrong) or "all held")
    sys.exit(bool(wrong))


asyncio.run(main())
