# losskit completion for bash: eval "$(losskit completion bash)"
_losskit_complete() {
    local IFS=$'\n'
    local program=${1/#\~/$HOME}
    # shellcheck disable=SC2207
    COMPREPLY=($("$program" __complete bash "$COMP_POINT" "$COMP_LINE" "$COMP_WORDBREAKS" 2>/dev/null))
}
# losskit itself puts a blank after a whole word, and none after "loss="
complete -o nospace -F _losskit_complete losskit
