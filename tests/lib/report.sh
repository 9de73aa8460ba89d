# Running checks and counting what they came to; sourced by tests/run and tests/deep.
#
# A check's output goes to the terminal and, for counting, to a file. Tests that cannot run here say so in the file that
# VSWITCH_TEST_SKIPS names (tests/common/skip.rs): a runner takes them for passed, so they are taken off again here. A test
# that ran, but not on all it could, says so in the file that VSWITCH_TEST_NOTES names: that is reported, and counts for nothing.

passed=0
failed=0
reasons=()   # of what was skipped, a line each
failures=()
tiers=()     # what each check came to, a line each
started=$SECONDS

# Where cargo puts things; a relative CARGO_TARGET_DIR is relative to the repository, as all scripts run there.
target=${CARGO_TARGET_DIR:-target}
mkdir -p "$target"
target=$(cd "$target" && pwd)
output=$target/test-output
export CARGO_TARGET_DIR=$target
export VSWITCH_TEST_SKIPS=$target/test-skips
export VSWITCH_TEST_NOTES=$target/test-notes
export VSWITCH_TEST_ASSETS=$target/test-assets
export CARGO_TERM_COLOR=never NEXTEST_HIDE_PROGRESS_BAR=1
: > "$VSWITCH_TEST_SKIPS"
: > "$VSWITCH_TEST_NOTES"

title() { printf '\n== %s (%d s)\n' "$1" $((SECONDS - started)); }

skipped() { reasons+=("$1"); printf 'SKIPPED: %s\n' "$1"; }

# Runs a command, output to the terminal and to $output; its exit code.
logged() { "$@" 2>&1 | tee "$output"; return "${PIPESTATUS[0]}"; }

# tier NAME PASSED FAILED SINCE: a line for the summary.
tier() { tiers+=("$(printf '%5d passed %3d failed %6d s  %s' "$2" "$3" $((SECONDS - $4)) "$1")"); }

# check NAME COMMAND...: one check, passed when the command succeeds.
check() {
    local ok=0 since=$SECONDS
    title "$1"
    if logged "${@:2}"; then ok=1; else failures+=("$1"); fi
    passed=$((passed + ok))
    failed=$((failed + 1 - ok))
    tier "$1" $ok $((1 - ok)) $since
}

# tests NAME COMMAND...: a test run of cargo or nextest, whose own counts are added.
tests() {
    title "$1"
    local code=0 ok bad out since=$SECONDS
    logged "${@:2}" || code=$?
    # `test result: ok. 5 passed; 0 failed; 1 ignored; ...`, one for each test binary, or
    # `Summary [ 0.1s] 9 tests run: 7 passed (1 slow), 1 failed, 1 timed out, 3 skipped`, one at the end.
    read -r ok bad out < <(awk '
        function before(word,   i) { for (i = 2; i <= NF; i++) if ($i ~ "^" word "[,;.]?$") return $(i - 1) + 0; return 0 }
        /^test result: / { ok += before("passed"); bad += before("failed"); out += before("ignored") }
        /^ *Summary \[/ { sub(/\([^)]*\)/, ""); ok += before("passed"); bad += before("failed") + before("out"); out += before("skipped") }
        END { print ok + 0, bad + 0, out + 0 }' "$output")
    ran=$((ok + bad))
    [ "$bad" -eq 0 ] || failures+=("$1: $bad of its tests")
    [ "$out" -eq 0 ] || for _ in $(seq "$out"); do skipped "$1: marked as ignored"; done
    # It did not compile, or a test binary crashed.
    if [ $code -ne 0 ] && [ "$bad" -eq 0 ]; then bad=1; failures+=("$1: exit code $code"); fi
    passed=$((passed + ok))
    failed=$((failed + bad))
    tier "$1" "$ok" "$bad" $since
}

# Prints the result and exits. With "strict", what was skipped is a failure.
finish() {
    local test why n
    # A test may give its reason more than once.
    while IFS=$'\t' read -r test why; do
        passed=$((passed - 1))
        reasons+=("$test: $why")
    done < <(sort -t $'\t' -k 1,1 -u "$VSWITCH_TEST_SKIPS")
    n=${#reasons[@]}
    title "result"
    printf '%s\n' "${tiers[@]}"
    [ ! -s "$VSWITCH_TEST_NOTES" ] || { echo "Notes:"; sort -u "$VSWITCH_TEST_NOTES" | sed 's/^/  /'; }
    [ "$n" -eq 0 ] || { echo "Skipped:"; printf '  %s\n' "${reasons[@]}" | sort | uniq -c; }
    [ ${#failures[@]} -eq 0 ] || { echo "Failed:"; printf '  %s\n' "${failures[@]}"; }
    [ "$n" -eq 0 ] || [ "$1" != strict ] || echo "Nothing may be skipped here: that is a failure."
    echo "$passed passed, $failed failed, $n skipped"
    [ "$failed" -eq 0 ] && { [ "$n" -eq 0 ] || [ "$1" != strict ]; }
    exit
}
