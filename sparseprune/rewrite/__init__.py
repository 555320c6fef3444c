import sys

from sparseprune.rewrite import forward, trace

# Where models that were pickled before these files moved look for them.
sys.modules["sparseprune.rewriting"], sys.modules["sparseprune.tracing"] = forward, trace
