"""What a GPU would run, known without one: the host code of every op, its launches compiled, their machine code read.

`pretended` lets an op's own host code run on CUDA tensors that have no memory, and compiles what it launches; `machine_code`
reads the result; `cases` says which calls are looked at and `report` what their instructions allow a card to reach.
`python -m modelassay_kernels.ahead_of_time` writes `kernels/RESOURCES.md`.
"""
