"""Whole epochs of pretraining in PyTorch by the recipe of the README's `wgrad pretrain`: the accuracy that
is to be expected of it.

usage: torch_epochs.py DATA SIZES... [--batch 64] [--lr 0.1] [--wd 5e-4] [--seed 0] [--weights FILE]

DATA holds class folders in train/ and val/, or archives (.tar.gz) of them; SIZES is the image size of
each epoch, the last also that of validation. Starts from random weights. RandomResizedCrop(scale=(0.35, 1))
and horizontal flips, SGD with Nesterov momentum 0.9, weight decay but for batch norm's parameters, label
smoothing 0.1, one cycle of learning rates. Prints a line an epoch; with --weights nothing is trained, and
the line is that file's. Needs torch, torchvision, safetensors and pillow.

Validation is Resize(round(size * 256 / 224)) and CenterCrop(size), of every image; wgrad takes an image that
is as large as the network's input as it is.
"""

import argparse
import io
import tarfile
import time
from pathlib import Path

import torch
import torchvision
from PIL import Image
from safetensors.torch import load_file
from torchvision import transforms as T

p = argparse.ArgumentParser()
p.add_argument("data", type=Path)
p.add_argument("sizes", type=int, nargs="+")
p.add_argument("--batch", type=int, default=64)
p.add_argument("--lr", type=float, default=0.1)
p.add_argument("--wd", type=float, default=5e-4)
p.add_argument("--seed", type=int, default=0)
p.add_argument("--weights", type=Path)
a = p.parse_args()
torch.manual_seed(a.seed)

files = {"train": [], "val": []}
for path in sorted(a.data.rglob("*.JPEG")):
    files[path.relative_to(a.data).parts[0]].append((path.parent.name, path.read_bytes()))
for archive in sorted(a.data.glob("*.tar.gz")):
    with tarfile.open(archive) as members:
        for member in members:
            parts = Path(member.name).parts
            split = next((part for part in parts if part in files), None)
            if member.isfile() and split:
                label = parts[parts.index(split) + 1]
                files[split].append((label, members.extractfile(member).read()))
labels = sorted({label for label, _ in files["train"]})
numbers = {label: number for number, label in enumerate(labels)}
print({split: len(items) for split, items in files.items()}, f"{len(labels)} classes", flush=True)


class Images(torch.utils.data.Dataset):
    def __init__(self, items, transform):
        self.items, self.transform = items, transform

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        label, data = self.items[index]
        return self.transform(Image.open(io.BytesIO(data)).convert("RGB")), numbers[label]


norm = [T.ToTensor(), T.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])]
last = a.sizes[-1]
seen = [T.Resize(round(last * 256 / 224)), T.CenterCrop(last)]
val = torch.utils.data.DataLoader(Images(files["val"], T.Compose(seen + norm)), 64)
net = torchvision.models.resnet18(num_classes=len(labels))


def validate():
    net.eval()
    with torch.no_grad():
        right = sum((net(x).argmax(1) == y).sum().item() for x, y in val)
    return f"val {100 * right / len(files['val']):.1f} %"


if a.weights:
    net.load_state_dict(load_file(a.weights), strict=False)
    print(validate())
    raise SystemExit

norms = [m for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d)]
undecayed = {p for m in norms for p in m.parameters()}
groups = [
    {"params": [p for p in net.parameters() if p not in undecayed], "weight_decay": a.wd},
    {"params": [p for p in net.parameters() if p in undecayed], "weight_decay": 0.0},
]
optimizer = torch.optim.SGD(groups, lr=a.lr, momentum=0.9, nesterov=True)
steps = len(a.sizes) * -(-len(files["train"]) // a.batch)
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, a.lr, steps, cycle_momentum=False)
criterion = torch.nn.CrossEntropyLoss(label_smoothing=0.1)

for epoch, size in enumerate(a.sizes, 1):
    net.train()
    varied = [T.RandomResizedCrop(size, scale=(0.35, 1.0)), T.RandomHorizontalFlip()]
    train = Images(files["train"], T.Compose(varied + norm))
    total, started = 0.0, time.time()
    for x, y in torch.utils.data.DataLoader(train, a.batch, shuffle=True, num_workers=1):
        optimizer.zero_grad()
        loss = criterion(net(x), y)
        loss.backward()
        optimizer.step()
        schedule.step()
        total += loss.item() * len(y)
    speed = len(train) / (time.time() - started)
    mean = total / len(train)
    print(f"epoch {epoch}, {size} px: train {mean:.3f}, {validate()}, {speed:.0f} img/s", flush=True)
