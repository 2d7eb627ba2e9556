"""The network: tensors in, tensors out; it knows nothing of files."""

import warnings

# timm still uses a part of torch.jit that torch has announced to remove; the user can do nothing about it
warnings.filterwarnings("ignore", message="`torch.jit", category=FutureWarning)
