"""Times PyTorch's ResNet-18 on the sizes of `wgrad bench --quick`, to lay beside its table.

usage: torch_step.py [cpu|cuda]

Eager, f32, SGD with momentum 0.9 and weight decay 1e-4, random images that stay where they are;
medians of seven after two to warm up. Needs torch and torchvision.
"""

import statistics
import sys
import time

import torch
import torchvision

device = sys.argv[1] if len(sys.argv) > 1 else "cpu"
torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
torch.backends.cudnn.benchmark = True
net = torchvision.models.resnet18(num_classes=200).to(device)
optimizer = torch.optim.SGD(net.parameters(), 1e-4, momentum=0.9, weight_decay=1e-4)


def median_seconds(work):
    samples = []
    for _ in range(9):
        started = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        samples.append(time.perf_counter() - started)
    return statistics.median(samples[2:])


print(f"torch {torch.__version__} on {device}, {torch.get_num_threads()} threads")
for batch, size in (8, 64), (32, 64), (4, 224):
    images = torch.randn(batch, 3, size, size, device=device)
    labels = torch.zeros(batch, dtype=torch.long, device=device)

    def train():
        net.train()
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(images), labels).backward()
        optimizer.step()

    def infer():
        net.eval()
        with torch.no_grad():
            net(images)

    trained, inferred = batch / median_seconds(train), batch / median_seconds(infer)
    print(f"{size} px, batch {batch}: training {trained:.1f} img/s, inference {inferred:.1f} img/s")
