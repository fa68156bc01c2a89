// Package nginx holds configurations of nginx for operators: in front of a box, an entrance and a publisher. Its tests
// check them with the real nginx; e2e carries traffic through them.
package nginx
