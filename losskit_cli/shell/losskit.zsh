#compdef losskit
# losskit completion for zsh: eval "$(losskit completion zsh)"
_losskit() {
    local line value text
    local -a earlier whole open whole_shown open_shown
    (( CURRENT > 2 )) && earlier=("${(@Q)words[2,CURRENT-1]}")
    for line in "${(@f)$("${(Q)words[1]}" __complete zsh "${earlier[@]}" "${(Q)PREFIX}" 2>/dev/null)}"; do
        [[ -n $line ]] || continue
        value=${line%%$'\t'*}
        text=${line#*$'\t'}
        if [[ $value == *' ' ]]; then
            value=${value% }
            whole+=("$value")
            whole_shown+=("$value${text:+  -- $text}")
        else
            open+=("$value")
            open_shown+=("$value${text:+  -- $text}")
        fi
    done
    (( $#whole )) && compadd -Q -l -d whole_shown -a whole
    (( $#open )) && compadd -Q -l -S '' -d open_shown -a open
    return 0
}
if (( ! $+functions[compdef] )); then
    autoload -Uz compinit && compinit
fi
compdef _losskit losskit
# so that regularizer=[l1,l2] needs no quotes
(( $+aliases[losskit] )) || alias losskit='noglob losskit'
