"""PyTorch's side of first_steps.rs: the recipe of `wgrad pretrain` on the batches it wrote.

usage: torch_pretrain.py DIR BATCH [float32|float64] [THREADS]

Reads DIR/start.safetensors and DIR/batches.safetensors; writes DIR/torch-DTYPE.jsonl, a line a step,
and the last weights, in float32, to DIR/torch-DTYPE.safetensors.
SGD with momentum 0.9, weight decay 1e-4 but for batch norm's parameters, label smoothing 0.1, a linear
warm-up from a hundredth of 0.1 for each 256 images over the first of two epochs, a cosine to 0 over
the second. Needs torch,
torchvision and safetensors.
"""

import json
import sys
from pathlib import Path

import torch
import torchvision
from safetensors import safe_open
from safetensors.torch import load_file, save_file

folder, batch = Path(sys.argv[1]), int(sys.argv[2])
name = sys.argv[3] if len(sys.argv) > 3 else "float32"
if len(sys.argv) > 4:
    torch.set_num_threads(int(sys.argv[4]))
dtype = getattr(torch, name)
batches = load_file(folder / "batches.safetensors")
# Two epochs, whose last batches may be smaller.
images, labels = (
    [part for epoch in batches[key].chunk(2) for part in epoch.split(batch)]
    for key in ("pixels", "labels")
)

net = torchvision.models.resnet18(num_classes=200)
net.load_state_dict(load_file(folder / "start.safetensors"))
net.to(dtype).train()
norms = [m for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d)]
undecayed = {p for norm in norms for p in norm.parameters()}
groups = [
    {"params": [p for p in net.parameters() if p not in undecayed], "weight_decay": 1e-4},
    {"params": [p for p in net.parameters() if p in undecayed], "weight_decay": 0.0},
]
optimizer = torch.optim.SGD(groups, lr=0.1 * batch / 256, momentum=0.9)
half = len(images) // 2
warm_up = torch.optim.lr_scheduler.LinearLR(optimizer, 0.01, total_iters=half)
cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(images) - half)
schedule = torch.optim.lr_scheduler.SequentialLR(optimizer, [warm_up, cosine], [half])
criterion = torch.nn.CrossEntropyLoss(label_smoothing=0.1)
mean = torch.tensor([0.485, 0.456, 0.406], dtype=dtype)
std = torch.tensor([0.229, 0.224, 0.225], dtype=dtype)

with open(folder / f"torch-{name}.jsonl", "w") as steps:
    for step, (pixels, targets) in enumerate(zip(images, labels)):
        x = ((pixels.to(dtype) / 255 - mean) / std).permute(0, 3, 1, 2).contiguous()
        optimizer.zero_grad()
        loss = criterion(net(x), targets)
        loss.backward()
        lr = optimizer.param_groups[0]["lr"]
        optimizer.step()
        schedule.step()
        print(json.dumps({"step": step, "loss": loss.item(), "lr": lr}), file=steps, flush=True)
with safe_open(folder / "start.safetensors", "pt") as start:
    save_file(net.float().state_dict(), folder / f"torch-{name}.safetensors", start.metadata())
