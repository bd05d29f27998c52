"""What an Arrow array takes once its dictionaries are written out: known before it is done."""

import pyarrow as pa
import pyarrow.compute as pc


def unpacked_bytes(array: pa.Array | pa.ChunkedArray) -> int:
    """Bytes of an array's values, each counted as often as it stands there."""
    if isinstance(array, pa.ChunkedArray):
        return sum(map(unpacked_bytes, array.chunks))
    if isinstance(array, pa.ExtensionArray):
        return unpacked_bytes(array.storage)
    kind = array.type
    if pa.types.is_dictionary(kind):
        if not (pa.types.is_string(kind.value_type) or pa.types.is_binary(kind.value_type)):
            return int(array.nbytes)
        lengths = pc.binary_length(array.dictionary).take(array.indices)
        return int(pc.sum(lengths.cast(pa.int64())).as_py() or 0) + 4 * len(array)
    if pa.types.is_struct(kind):
        return sum(unpacked_bytes(array.field(i)) for i in range(kind.num_fields))
    if pa.types.is_map(kind):
        return unpacked_bytes(array.keys) + unpacked_bytes(array.items)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return unpacked_bytes(array.flatten()) + 4 * len(array)
    return int(array.nbytes)
