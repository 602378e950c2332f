"""BERT's corruption of texts for the tokens of one network."""

from featurecache.augment import TokenAugmentation
from featurecache.errors import UsageError
from featurecache.inputs import TextInput

__all__ = ["mask_of"]


def mask_of(network_input: TextInput) -> TokenAugmentation:
    """Which tokens may be hidden and what hides them. Raises UsageError if the tokenizer has no token for a mask."""
    tokenizer = network_input.tokenizer
    masks = (tokenizer.token_to_id(token) for token in ("[MASK]", "<mask>"))
    mask_id = next((number for number in masks if number is not None), None)
    if mask_id is None:
        hint = "choose a tokenizer that has [MASK] or <mask>; without one, texts have the plain view alone"
        raise UsageError("the tokenizer has no mask token", hint=hint)
    special = [number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special]
    return TokenAugmentation(
        mask_id=mask_id,
        vocabulary=network_input.vocabulary_size,
        special_ids=tuple(sorted(special)),
        max_length=network_input.max_length,
    )
