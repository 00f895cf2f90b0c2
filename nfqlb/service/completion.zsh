#compdef nfqlb
# zsh completion for nfqlb; `nfqlb complete` knows the words.

local -a lines described unfinished
local line

lines=("${(@f)$(command nfqlb complete -- "${(@Q)words[2,CURRENT-1]}" "${PREFIX}" 2>/dev/null)}")
case ${lines[1]} in
    :files) _files; return ;;
    :directories) _files -/; return ;;
esac
for line in $lines; do
    if [[ ${line%%$'\t'*} == *= ]]; then
        unfinished+=("${line%%$'\t'*}")
    else
        described+=("${${line%%$'\t'*}//:/\\:}${${line#*$'\t'}:+:${line#*$'\t'}}")
    fi
done
(( $#described )) && _describe -V nfqlb described
(( $#unfinished )) && compadd -S '' -- $unfinished
