"""A trained model as others use it: one set of weights, a model card; GGUF and the hub where asked for.

export.py    the steps in order, into a folder that is whole or not there
weights.py   merged weights, written, loaded again and compared
facts.py     what a run left that a card tells; card.py the card; curve.py its picture
gguf.py      llama.cpp's converter; hub.py huggingface.co
"""
