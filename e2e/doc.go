// Package e2e runs Dandelion as its users do: the built programs as processes of their own, with
// the real encoder, players, browser and Redis. It owns that scenery and the tests upon it. It
// must not know the insides of any peer: it reads what the programs print, their HTTP APIs, and
// the keys that other programs may read.
//
// `make e2e` runs it. A part that is missing on the machine fails the tests that need it.
package e2e
