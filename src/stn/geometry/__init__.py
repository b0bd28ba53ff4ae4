"""The paper's equations as pure functions of tensors: transformations and samplers. Imports torch and nothing else."""
