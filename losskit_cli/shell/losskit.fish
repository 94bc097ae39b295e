# losskit completion for fish: losskit completion fish | source
function __losskit_complete
    set -l words (commandline -opc)
    set -l token (commandline -ct)
    $words[1] __complete fish $words[2..-1] "$token" 2>/dev/null
end
complete -c losskit -f -a '(__losskit_complete)'
