# bash completion for nfqlb; `nfqlb complete` knows the words.

_nfqlb() {
    local line=${COMP_LINE:0:COMP_POINT} words cur candidates
    read -ra words <<<"$line"
    [[ $line == *[[:space:]] ]] && words+=("")
    cur=${words[-1]}
    mapfile -t candidates < <(command nfqlb complete -- "${words[@]:1}" 2>/dev/null)
    case ${candidates[0]-} in
        :files) compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$cur"); return ;;
        :directories) compopt -o filenames; mapfile -t COMPREPLY < <(compgen -d -- "$cur"); return ;;
    esac
    # bash replaces what follows the last = or : only
    local kept=${cur%"${cur##*[=:]}"} candidate
    COMPREPLY=()
    for candidate in "${candidates[@]}"; do
        candidate=${candidate%%$'\t'*}
        COMPREPLY+=("${candidate#"$kept"}")
    done
    [[ ${#COMPREPLY[@]} == 1 && ${COMPREPLY[0]} == *= ]] && compopt -o nospace
}

complete -F _nfqlb nfqlb
