package restore

import (
	"errors"
	"fmt"
	"strings"
)

// ErrNothingSelected means that a part of a selection fits nothing that the snapshot holds, as one that is mistyped does. Nothing
// was written: keys whose rename was mistyped would come back under the names that they were to be kept from.
var ErrNothingSelected = errors.New("a part of the selection fits nothing in the snapshot")

// NothingSelected is ErrNothingSelected in words, for prefixes that no key begins with, and renames of what no selected key begins
// with; nil when there are none of either.
func NothingSelected(prefixes []string, renames []Rename) error {
	var which []string
	for _, p := range prefixes {
		which = append(which, fmt.Sprintf("no key begins with the prefix %q", p))
	}
	for _, r := range renames {
		which = append(which, fmt.Sprintf("no selected key begins with %q, which is to be renamed to %q", r.Old, r.New))
	}
	if len(which) == 0 {
		return nil
	}
	return fmt.Errorf("%w: %s", ErrNothingSelected, strings.Join(which, "; "))
}
