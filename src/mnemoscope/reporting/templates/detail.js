"use strict";
// Hands the detail of one prompt to the page that asked for it, as data.
parent.postMessage(JSON.parse(document.getElementById("data").textContent), "*");
