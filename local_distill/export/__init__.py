"""A trained model as others use it: one set of weights, a model card; GGUF and the hub where asked for.

export_model.py  the steps in order, into a folder that is whole or not there
merging.py   merged weights, written, loaded again and compared
origin.py    where the model comes from; card.py the card that tells it, with its picture
gguf.py      llama.cpp's converter; hub.py huggingface.co
"""
