#!/bin/sh
# trim.sh SITE BEGIN [LIBRARY]: removes from a site-packages what no process of an image opens, as far as it is newer than the file BEGIN.
# LIBRARY: how the name of bitsandbytes' library for the row's runtime ends: cuda130, rocm72, xpu; nothing: only the processor's.
set -eu
cd "$1"
begin=$2 library=${3:-}

drop() { find "$@" -newer "$begin" -printf '%s\n' -delete; }

trim() {
    # Tests of packages that never import them. Not every folder of that name: jinja2's and datasets' are code.
    for package in matplotlib mpl_toolkits mpmath networkx numpy pandas pyarrow scipy sympy; do
        if [ -d "$package" ]; then drop "$package" -depth \( -path '*/tests' -o -path '*/tests/*' \); fi
    done
    # torch's own tests in C++, and the compiler of its message format
    for folder in torch/test torch/bin; do
        if [ -d "$folder" ]; then drop "$folder" -depth \( -path 'torch/test*' -o -name 'protoc*' -o -name 'test_*' -o -name '*Test' \); fi
    done

    # Static archives: only what extensions of DeepSpeed and torch are linked against is of use.
    drop . -name '*.a' -size +100k ! -name libcudart_static.a ! -name libcudadevrt.a
    # The other nvrtc, a solver for several GPUs that torch is not linked against, and hardware counters for profilers
    drop . -path './nvidia/*/lib/*' \( -name 'libnvrtc*.alt.so*' -o -name 'libcusolverMg.so*' -o -name 'libnvperf_*' -o -name libcheckpoint.so \
        -o -name libpcsamplingutil.so \)

    # bitsandbytes brings a library for each toolkit. Where it has none for the row's, it takes another one of the same major version.
    if [ -d bitsandbytes ]; then
        keep=${library:+libbitsandbytes_$library.so}
        if [ -n "$keep" ] && [ ! -f "bitsandbytes/$keep" ]; then keep="libbitsandbytes_${library%?}*.so"; fi
        drop bitsandbytes -name 'libbitsandbytes_*.so' ! -name libbitsandbytes_cpu.so ! -name "$keep"
    fi

    # When uv put it there: it differs from build to build
    for file in *.dist-info/uv_cache.json; do
        if [ -f "$file" ] && [ "$file" -nt "$begin" ]; then
            sed -i '/\/uv_cache\.json,/d' "${file%/*}/RECORD"
            drop "$file"
        fi
    done
}

trim > "$begin.trimmed"
awk '{ bytes += $1 } END { printf "trimmed: %.0f MB\n", bytes / 1e6 }' "$begin.trimmed"
