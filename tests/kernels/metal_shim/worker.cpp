// Serves launches over its standard input and output: buffers come in, a grid is run, buffers go back.
//
// A buffer lies in memory of exactly its size, so that the address sanitizer sees the first byte outside. `kernels.inc` is generated: the
// kernels, one namespace for each set of number types, and the table `KERNELS` of functions that call them.
#include <metal_simdgroup_matrix>
#include "kernels.inc"

static void read(void* to, size_t bytes)
{
    if (bytes && std::fread(to, 1, bytes, stdin) != bytes) {
        std::exit(0); // whoever asked is gone
    }
}

template <typename T> static T read()
{
    T value;
    read(&value, sizeof value);
    return value;
}

static uint3 read_place()
{
    uint3 place;
    place.x = read<uint>();
    place.y = read<uint>();
    place.z = read<uint>();
    return place;
}

int main()
{
    for (;;) {
        const uint which = read<uint>();
        shim::group.shuffle = read<ulong>();
        const uint3 threads = read_place();
        const uint3 shape = read_place();
        std::vector<std::pair<char*, size_t>> buffers(read<uint>());
        for (auto& buffer : buffers) {
            buffer.second = read<ulong>();
            buffer.first = static_cast<char*>(std::malloc(buffer.second));
            read(buffer.first, buffer.second);
        }
        std::vector<void*> arguments(read<uint>());
        for (auto& argument : arguments) {
            const uint buffer = read<uint>();
            argument = buffers.at(buffer).first + read<ulong>();
        }
        shim::run_grid(KERNELS[which], arguments.data(), threads, shape);
        for (auto& buffer : buffers) {
            std::fwrite(buffer.first, 1, buffer.second, stdout);
            std::free(buffer.first);
        }
        std::fflush(stdout);
    }
}
