import "./page.css";
import { nativePlayer, nativeSupported } from "./native";
import { open } from "./page";

const missing = "This page was built without the player library";

if (nativeSupported(document.createElement("video"))) {
  open(nativePlayer, `${missing}; the browser plays by itself and does not tell where the bytes come from.`);
} else {
  open(null, `${missing}, and this browser does not play HLS by itself. Chrome and Edge from version 142 and Safari do.`);
}
