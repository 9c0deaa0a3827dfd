"""Writes a tiny language model of random numbers: it says nothing, but a server cannot tell.

    model.py FILE

A llama of 2 layers, some 300 kB. Its words are plain letters; the rows of all other tokens are
zero, so that with temperature 0 none of them is ever the likeliest, the end of the text included:
an answer is as long as it may be, and valid UTF-8.
"""

import sys

import gguf
import numpy as np

LAYERS, WIDTH, HEADS, INNER, CONTEXT = 2, 64, 4, 128, 16384
WORDS = ["▁" + a + b for a in "bdfgklmnprst" for b in ("a", "e", "i", "o", "u", "an", "en", "or")]
TEMPLATE = "{% for message in messages %}{{ message['content'] }} {% endfor %}"

rng = np.random.default_rng(1)
kinds = gguf.TokenType
tokens = [("<unk>", kinds.UNKNOWN), ("<s>", kinds.CONTROL), ("</s>", kinds.CONTROL)]
tokens += [(f"<0x{byte:02X}>", kinds.BYTE) for byte in range(256)]
tokens += [(word, kinds.NORMAL) for word in WORDS]
tokens += [(letter, kinds.NORMAL) for letter in "▁abcdefghijklmnopqrstuvwxyz"]
first = 3 + 256

writer = gguf.GGUFWriter(sys.argv[1], "llama")
writer.add_name("random")
writer.add_context_length(CONTEXT)
writer.add_embedding_length(WIDTH)
writer.add_block_count(LAYERS)
writer.add_feed_forward_length(INNER)
writer.add_head_count(HEADS)
writer.add_head_count_kv(HEADS)
writer.add_layer_norm_rms_eps(1e-5)
writer.add_rope_dimension_count(WIDTH // HEADS)
writer.add_vocab_size(len(tokens))
writer.add_tokenizer_model("llama")
writer.add_token_list([token for token, _ in tokens])
writer.add_token_scores([-float(n) for n in range(len(tokens))])
writer.add_token_types([kind for _, kind in tokens])
writer.add_bos_token_id(1)
writer.add_eos_token_id(2)
writer.add_unk_token_id(0)
writer.add_chat_template(TEMPLATE)


def tensor(name, *shape):
    writer.add_tensor(name, rng.normal(0, 0.3, shape).astype(np.float32))


def ones(name):
    writer.add_tensor(name, np.ones(WIDTH, dtype=np.float32))


tensor("token_embd.weight", len(tokens), WIDTH)
output = rng.normal(0, 0.3, (len(tokens), WIDTH)).astype(np.float32)
output[:first] = 0
writer.add_tensor("output.weight", output)
ones("output_norm.weight")
for layer in range(LAYERS):
    block = f"blk.{layer}"
    ones(f"{block}.attn_norm.weight")
    ones(f"{block}.ffn_norm.weight")
    for part in ["attn_q", "attn_k", "attn_v", "attn_output"]:
        tensor(f"{block}.{part}.weight", WIDTH, WIDTH)
    tensor(f"{block}.ffn_gate.weight", INNER, WIDTH)
    tensor(f"{block}.ffn_up.weight", INNER, WIDTH)
    tensor(f"{block}.ffn_down.weight", WIDTH, INNER)
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
