package grants

import (
	"cmp"
	"slices"

	"dandelion/pkg/id"
)

// Claim is what a publisher asks of the box's upload.
type Claim struct {
	Demand   int64 // bytes/s
	Favoured bool  // the box's owner wants it to come first
	Old      bool  // it knows no grants: its demand is a reserve, and it gets nothing of what is left
}

// Divide shares total bytes/s among publishers: favoured demands first, in each group from the
// smallest up, so that nobody gets more than another one who asks for more than it has; what no
// demand takes is shared alike. The shares add up to total at most.
func Divide(total int64, claims map[id.PublisherID]Claim) map[id.PublisherID]int64 {
	shares := make(map[id.PublisherID]int64, len(claims))
	left := max(total, 0)
	for _, favoured := range []bool{true, false} {
		var group []id.PublisherID
		for pub, c := range claims {
			if c.Favoured == favoured {
				group = append(group, pub)
			}
		}
		left -= fill(left, group, shares, func(pub id.PublisherID) int64 { return claims[pub].Demand })
	}
	var rest []id.PublisherID
	for pub, c := range claims {
		if !c.Old {
			rest = append(rest, pub)
		}
	}
	for _, pub := range rest {
		shares[pub] += left / int64(len(rest))
	}
	return shares
}

// fill gives each of a group what it demands, or where that is more than there is an equal share of
// what the smaller ones leave. It returns what it gave.
func fill(total int64, group []id.PublisherID, shares map[id.PublisherID]int64, demand func(id.PublisherID) int64) (given int64) {
	slices.SortFunc(group, func(a, b id.PublisherID) int {
		return cmp.Or(cmp.Compare(demand(a), demand(b)), cmp.Compare(a, b))
	})
	for i, pub := range group {
		share := min(max(demand(pub), 0), (total-given)/int64(len(group)-i))
		shares[pub] = share
		given += share
	}
	return given
}
