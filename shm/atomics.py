"""Loads, stores and fences on words of shared memory, as LLVM instructions (any architecture LLVM knows).

A word is an element of a C-contiguous int64 array of two dimensions: `words[ring, WORD]`. A plain load in a waiting
loop is hoisted out of it; these are not. Each word has one writer, so nothing here reads, modifies and writes.
"""
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

WORD_BYTES = 8


def _item_pointer(context, builder, signature, args):
    array_type = signature.args[0]
    array = context.make_array(array_type)(context, builder, args[0])
    indices = [context.cast(builder, arg, given, types.intp) for arg, given in zip(args[1:3], signature.args[1:3])]
    return cgutils.get_item_pointer(context, builder, array_type, array, indices, wraparound=False)


def _is_words(array):
    return isinstance(array, types.Array) and array.ndim == 2 and array.dtype == types.int64 and array.layout == "C"


@intrinsic
def load_acquire(typingctx, words, row, word):
    """The word's value; everything its writer did before releasing it is visible after this."""
    if not _is_words(words):
        return None

    def codegen(context, builder, signature, args):
        pointer = _item_pointer(context, builder, signature, args)
        return builder.load_atomic(pointer, ordering="acquire", align=WORD_BYTES)
    return types.int64(words, row, word), codegen


@intrinsic
def store_release(typingctx, words, row, word, value):
    """Store for readers that acquire: they see everything done before this."""
    if not _is_words(words):
        return None

    def codegen(context, builder, signature, args):
        pointer = _item_pointer(context, builder, signature, args)
        value_given = context.cast(builder, args[3], signature.args[3], types.int64)
        builder.store_atomic(value_given, pointer, ordering="release", align=WORD_BYTES)
        return context.get_dummy_value()
    return types.none(words, row, word, value), codegen


def _fence(ordering):
    def codegen(context, builder, signature, args):
        builder.fence(ordering)
        return context.get_dummy_value()
    return codegen


@intrinsic
def fence_seq_cst(typingctx):
    """No load below moves above, no store above moves below: between a publishing store and the look at a sleep flag,
    and between storing that flag and the last look at the rings."""
    return types.none(), _fence("seq_cst")


@intrinsic
def fence_release(typingctx):
    """Stores above stay above stores below: between an intent cursor and the slot it announces."""
    return types.none(), _fence("release")


@intrinsic
def fence_acquire(typingctx):
    """Loads above stay above loads below: between copying a slot and re-checking the intent cursor."""
    return types.none(), _fence("acquire")


@intrinsic
def address_of(typingctx, words, row, word):
    """The word's address, for a system call."""
    if not _is_words(words):
        return None

    def codegen(context, builder, signature, args):
        pointer = _item_pointer(context, builder, signature, args)
        return builder.ptrtoint(pointer, context.get_value_type(types.intp))
    return types.intp(words, row, word), codegen
