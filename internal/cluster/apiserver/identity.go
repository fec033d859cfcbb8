package apiserver

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/pem"
	"slices"
	"strings"
)

// Identity returns the cluster's identity: a digest of the certificates of its
// authority, which are made with the cluster and with no other. Their order and
// number do not count, for they come from several places.
func Identity(ca []byte) string {
	var sums []string
	for block, rest := pem.Decode(ca); block != nil; block, rest = pem.Decode(rest) {
		sum := sha256.Sum256(block.Bytes)
		sums = append(sums, hex.EncodeToString(sum[:]))
	}
	slices.Sort(sums)
	all := sha256.Sum256([]byte(strings.Join(slices.Compact(sums), " ")))
	return hex.EncodeToString(all[:])
}
