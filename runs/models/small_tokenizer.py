"""A CLIP tokenizer made in code: the 256 bytes, and some common words that are one token each. Other words fall into letters."""

LENGTH = 77  # tokens of a prompt, the two marks around it included, as in CLIP

WORDS = """a an the of in on at with and under over by to from no very is as into dog cat bear
bird fox horse cow sheep wolf lion man woman boy girl
child knight robot hat cap coat dress scarf sofa chair table bed lamp book cup cake bread apple plum pear fruit bowl basket house castle
tower bridge church boat ship car bus train road street city village river lake sea beach hill mountain forest tree flower garden
field snow rain fog cloud clouds cloudy sky sun moon star stars night day evening morning winter summer spring autumn fire fireworks
wallpaper wallpapers mountaineering jigsaw puzzle poster photo photograph picture painting drawing sketch watercolor portrait
landscape red green blue yellow white black brown golden big small old young wooden stone glass helicopter cormorant vulture
sitting standing running flying wearing holding eating next front behind , .""".split()


def make(length=LENGTH):
    """A ``transformers.CLIPTokenizer`` of ``length`` tokens a prompt. Needs no file and no network; the same each time."""
    from transformers import CLIPTokenizer

    letters = _byte_letters()
    pieces = dict.fromkeys([*letters, *(letter + "</w>" for letter in letters)])
    merges = {}
    for word in WORDS:
        parts = _read([*word[:-1], word[-1] + "</w>"], merges)
        while len(parts) > 1:  # what earlier words do not join yet joins from the left, after everything they join
            merges[tuple(parts[:2])] = len(merges)
            parts[:2] = [parts[0] + parts[1]]
            pieces[parts[0]] = None
    vocabulary = {piece: number for number, piece in enumerate([*pieces, "<|startoftext|>", "<|endoftext|>"])}
    return CLIPTokenizer(vocab=vocabulary, merges=list(merges), model_max_length=length)


def _read(parts, merges):
    """What a word's parts become by the merges so far: the earliest first, as the tokenizer does it."""
    while True:
        known = [(merges[pair], place) for place, pair in enumerate(zip(parts, parts[1:])) if pair in merges]
        if not known:
            return parts
        place = min(known)[1]
        parts[place : place + 2] = [parts[place] + parts[place + 1]]


def _byte_letters():
    """The characters that stand for the 256 bytes in byte-level vocabularies: printable ones for themselves, others from 256 on."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return [chr(byte) for byte in shown] + [chr(256 + place) for place in range(len(hidden))]
