"""Times PyTorch's ResNet-18 on the sizes of `wgrad bench`, and lays files of `wgrad bench` beside it.

    torch_step.py [--device cpu|cuda] [--modes f32,tf32,bf16,f16] [--sizes 64x8,224x4]
                  [--json FILE] [--wgrad FILE]...

Eager, cuDNN's own search for the fastest kernels on, images that stay on the device; SGD with momentum
0.9 and weight decay 1e-4. Modes: f32 (TF32 off); tf32, on CUDA; bf16 and f16, which are autocast with
channels_last, f16 with a GradScaler. A sample is as many steps as take a fifth of a second, from an
idle device to an idle device; shown are medians of seven after a warm-up. With --wgrad the sizes are
the files' own unless --sizes says otherwise, and each file (`wgrad bench --json-file FILE`, also with
`--precision mixed`) is compared with the mode that computes as it does: f32 with f32, mixed with f16,
or with bf16 where there is no f16. Run both in the same hour on the same idle machine.
Needs torch and torchvision.
"""

import argparse
import json
import platform
import re
import statistics
import time

import torch
import torchvision

SIZES = [(64, 8), (64, 32), (224, 4)]
SIZES_CUDA = [(64, 8), (64, 16), (64, 32), (64, 256), (224, 16), (224, 64), (224, 256)]
MODES = {"cpu": ["f32", "bf16"], "cuda": ["f32", "tf32", "bf16", "f16"]}
AUTOCAST = {"bf16": torch.bfloat16, "f16": torch.float16}
SECONDS = 0.2
SAMPLES = 7


def synchronize(device):
    if device == "cuda":
        torch.cuda.synchronize()


def samples(device, work):
    """Seconds of a step, several times."""
    for _ in range(3):
        work()
    synchronize(device)
    started = time.perf_counter()
    work()
    synchronize(device)
    repeats = max(1, round(SECONDS / (time.perf_counter() - started)))
    found = []
    for _ in range(SAMPLES):
        started = time.perf_counter()
        for _ in range(repeats):
            work()
        synchronize(device)
        found.append((time.perf_counter() - started) / repeats)
    return found


def measure(device, mode, size, batch):
    """The rows of one mode at one size: a training step, and the evaluation of a batch."""
    tf32 = mode == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(0)
    dtype = AUTOCAST.get(mode)
    layout = torch.channels_last if dtype else torch.contiguous_format
    net = torchvision.models.resnet18(num_classes=200).to(device, memory_format=layout)
    optimizer = torch.optim.SGD(net.parameters(), 1e-4, momentum=0.9, weight_decay=1e-4)
    scaler = torch.amp.GradScaler(device, enabled=mode == "f16")
    images = torch.randn(batch, 3, size, size, device=device).to(memory_format=layout)
    labels = torch.zeros(batch, dtype=torch.long, device=device)

    def autocast():
        return torch.autocast(device, dtype=dtype, enabled=dtype is not None)

    def train():
        optimizer.zero_grad()
        with autocast():
            loss = torch.nn.functional.cross_entropy(net(images), labels)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    def evaluate():
        with torch.inference_mode(), autocast():
            net(images)

    rows = []
    for group, work in ("training", train), ("inference", evaluate):
        net.train(group == "training")
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        row = {"group": group, "mode": mode, "size": size, "batch": batch}
        try:
            row["samples"] = samples(device, work)
        except torch.OutOfMemoryError as error:
            row["samples"], row["reason"] = [], str(error).splitlines()[0]
        if device == "cuda":
            row["device_bytes"] = torch.cuda.max_memory_reserved()
        rows.append(row)
    del net, optimizer, images
    if device == "cuda":
        torch.cuda.empty_cache()
    return rows


def speed(row):
    """Images a second; none if it was not measured."""
    return row["batch"] / statistics.median(row["samples"]) if row["samples"] else None


def read(path):
    """A file of `wgrad bench`: what to call it, the mode it is compared with, and its networks."""
    with open(path, encoding="utf-8") as file:
        bench = json.load(file)
    precision = bench.get("precision", "f32")
    rows = {}
    for row in bench["rows"]:
        shape = re.fullmatch(r"(\d+) px, batch (\d+)", row["shape"])
        if row["group"] in ("training", "inference") and shape:
            size, batch = map(int, shape.groups())
            row.update(size=size, batch=batch)
            rows[row["group"], size, batch] = row
    name = f"wgrad {precision}, {bench['adapter']['name']} ({bench['adapter']['backend']})"
    return name, "f32" if precision == "f32" else "f16", rows


def table(rows, files):
    """Both sides at every size, as text."""
    lines = []
    for key in dict.fromkeys((row["group"], row["size"], row["batch"]) for row in rows):
        group, size, batch = key
        lines.append(f"{group} {size} px, batch {batch}")
        torch_rows = {row["mode"]: row for row in rows if (row["group"], row["size"], row["batch"]) == key}
        sides = [(f"torch {mode}", row, None) for mode, row in torch_rows.items()]
        for name, mode, own in files:
            if key in own:
                mode = mode if mode in torch_rows else "bf16"
                sides.append((name, own[key], torch_rows.get(mode)))
        for name, row, other in sides:
            found = speed(row)
            if found is None:
                lines.append(f"  {row.get('reason') or 'not measured':>12}  {name}")
                continue
            text = f"  {found:9.1f} img/s"
            if row.get("device_bytes"):
                text += f"  {row['device_bytes'] / 1e6:8.0f} MB"
            text += f"  {name}"
            if other and speed(other):
                text += f": {found / speed(other):.2f} × torch {other['mode']}"
            lines.append(text)
    return "\n".join(lines)


def sizes_of(text):
    return [tuple(map(int, pair.split("x"))) for pair in text.split(",")]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--modes", help="separated by commas [default: all the device has]")
    parser.add_argument("--sizes", type=sizes_of, help="PIXELSxBATCH, separated by commas")
    parser.add_argument("--json", metavar="FILE", help="write what was measured, raw samples included")
    parser.add_argument("--wgrad", metavar="FILE", action="append", default=[], help="a file of wgrad bench")
    options = parser.parse_args()

    files = [read(path) for path in options.wgrad]
    sizes = options.sizes
    if sizes is None and files:
        # What wgrad left out as taking too long, PyTorch need not do either.
        measured = [key[1:] for _, _, rows in files for key, row in rows.items() if row["samples"]]
        sizes = list(dict.fromkeys(measured))
    if sizes is None:
        sizes = SIZES_CUDA if options.device == "cuda" else SIZES
    modes = options.modes.split(",") if options.modes else MODES[options.device]
    cuda = options.device == "cuda"
    about = {
        "schema": "wgrad-torch/1",
        "unix_time": int(time.time()),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if cuda else None,
        "device": torch.cuda.get_device_name() if cuda else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
    }
    print(f"torch {about['torch']} on {options.device} ({about['device']}), {about['threads']} threads")
    rows = [row for size in sizes for mode in modes for row in measure(options.device, mode, *size)]
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump({**about, "rows": rows}, file, indent=1)
    print(table(rows, files))


if __name__ == "__main__":
    main()
