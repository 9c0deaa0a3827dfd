"""llama.cpp's own server, as PyPI's xllamacpp carries it, until its standard input ends.

    server.py MODEL SLOTS

Prints its address once it serves.
"""

import sys

import xllamacpp

params = xllamacpp.CommonParams()
params.model.path = sys.argv[1]
params.n_parallel = int(sys.argv[2])
params.n_ctx = 16384 * params.n_parallel
params.n_threads_http = 80
params.endpoint_slots = True
params.endpoint_metrics = True
params.ui = False
server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
sys.stdin.read()
