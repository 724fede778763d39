"""The toy reads the similarity tables of fingerprinting."""

from modelassay.experiments.fingerprinting.published import READERS as READERS
